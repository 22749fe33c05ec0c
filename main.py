"""The command line from a checkout: `python main.py --help` (identical to the console command `lensae`)."""

from lensae.cli import main

if __name__ == "__main__":
    main()
