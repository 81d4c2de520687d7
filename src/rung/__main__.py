"""`python -m rung`, and under `torchrun -m rung`."""

from rung.cli.main import main

if __name__ == "__main__":
    main()
