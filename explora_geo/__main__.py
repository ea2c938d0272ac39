"""`python -m explora_geo` is the command line."""

from explora_geo.cli import main

if __name__ == '__main__':
    main()
