"""The registration engine over HTTP: ``ofg serve``. It calls ``Model.register`` and adds nothing to a result.

A request is read to the disk (``uploads``), its headers are checked (``scans``), and a job is written down (``jobs``)
before the client hears that it was accepted; threads (``worker``) register the jobs one after another.
"""
