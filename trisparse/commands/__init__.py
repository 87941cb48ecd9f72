"""The commands of `trisparse`, a file each: options in, exit code out. The rooms beside this one do the work."""
