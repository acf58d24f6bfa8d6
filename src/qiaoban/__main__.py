"""`python -m qiaoban` is `qiaoban`."""

from qiaoban.cli.main import main

if __name__ == "__main__":
    main()
