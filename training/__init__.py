"""How a model is made: configuration, data, tasks and the one loop they share."""
