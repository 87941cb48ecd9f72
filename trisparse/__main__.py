"""`python -m trisparse`: the command where it is not installed."""

from trisparse.cli import app

if __name__ == "__main__":
    app(prog_name="trisparse")
