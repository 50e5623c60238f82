"""`python -m edge_runtime.cli`."""

from edge_runtime.cli import main

if __name__ == "__main__":
    main()
