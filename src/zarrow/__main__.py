"""``python -m zarrow`` — the command line, where the script ``zarrow`` is not on the path."""

from zarrow.cli import main

if __name__ == "__main__":
    main()
