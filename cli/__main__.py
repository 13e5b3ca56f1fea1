import sys

try:
    from cli.app import main  # takes a moment, in which Ctrl-C may come

    main()
except KeyboardInterrupt:
    sys.exit(130)
