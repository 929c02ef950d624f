"""One endpoint over many replicas of the server, on a Ray cluster by Ray Serve (extra: ray).

A front takes requests and hands each to the replica that has the beginning of its prompt in its cache, or
to the one with the least to do. A replica is a whole server, models, engine, accounts and all, without a
socket. Ray Serve starts, watches, replaces, adds and removes replicas.
"""
