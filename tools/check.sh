#!/usr/bin/env bash
# Lint, types and tests, with the tools found on PATH; arguments go to pytest. `make test` calls it in its own environment.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
mypy
pytest -q -n 2 --dist loadfile "$@"
