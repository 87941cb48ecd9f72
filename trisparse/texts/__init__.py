"""Bulk runs over files of text: what is read, in which order, what becomes of each document."""
