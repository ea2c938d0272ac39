"""Run the command line by `python -m explora_geo`."""

from explora_geo.cli import main

if __name__ == '__main__':
    main()
