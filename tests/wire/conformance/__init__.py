"""The 247 base cases of RFC 6455 by the numbers under which the Autobahn test suite has made them known, as data.

Written from the RFC and from what is publicly known of each case. One module a group; `stage` plays a case against the
running service, whose plain socket is the echo: it publishes what it gets, and hears it.
"""
