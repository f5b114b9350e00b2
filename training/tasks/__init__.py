"""Training tasks: each adds its modules, samples and losses to the shared loop."""
