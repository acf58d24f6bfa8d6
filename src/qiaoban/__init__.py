"""Qiaoban (七巧板): build, judge and safely serve a children's emotional-companion dialogue model."""

__version__ = "0.1.0.dev0"
