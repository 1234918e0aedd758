"""`python -m synthorax` is the command line; `torchrun -m synthorax train ...` runs it on several processes."""

from synthorax.cli.app import main

if __name__ == "__main__":
    main()
