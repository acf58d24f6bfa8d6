"""Engines turn messages into text. All are one protocol; the guard sits above them, in `qiaoban.companion`."""
