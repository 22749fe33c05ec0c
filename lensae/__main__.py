"""`python -m lensae`, the same as the console command."""

from lensae.cli import main

if __name__ == "__main__":
    main()
