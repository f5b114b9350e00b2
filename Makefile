.PHONY: demo test slow check format

demo:
	python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/latentgen generate "a firefighter with dark skin, fluent 3d style" --seed 7 --out firefighter.png

test:
	python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest

slow:
	.venv/bin/pytest -m slow

check:
	ruff check . && ruff format --check . && mypy

format:
	ruff check --fix . && ruff format .
