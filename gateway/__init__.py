"""The gateway: the front door of the fleet, its ledger of requests and their durable store.

Nothing is imported here, so that a process that reads a batch's file pays for that alone; the service is `gateway.service`.
"""

# Says whose package this is to `qlm.overwritten`, since others may have the same name.
DISTRIBUTION = "qlm-serving"
