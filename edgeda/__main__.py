"""`python -m edgeda`, and the command `edgeda`: the command line, which a signal ends without a traceback."""

import signal


def main() -> None:
    """Load and run the command line. Until it listens to signals itself, and after, they end the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored under nohup and in background jobs
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgeda.cli import main as run

    run()


if __name__ == "__main__":
    main()
