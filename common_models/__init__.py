"""What concerns any network and no domain: files, names, dtypes, modes, folding, tracing, agreement, pretrained files.

It stands between `common_kernels`, which knows no network, and the domains, which never import each other.
"""
