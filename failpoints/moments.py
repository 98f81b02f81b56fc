"""Every moment that has a name, and what has and has not happened at it. docs/guarantees.md has the same table."""

from __future__ import annotations

MOMENTS = {
    # The gateway's store.
    "gateway.store.migrating": "an older store is half brought up to date, in one transaction",
    "gateway.store.before_commit": "new requests and ends are written, their commit is not",
    "gateway.store.after_commit": "they are committed, and nobody was told",
    # Files.
    "gateway.files.writing": "a part of a file that is being uploaded is about to be written",
    "gateway.files.received": "a whole file is written under a temporary name and synced, it is not renamed",
    "gateway.files.renamed": "it has its name, its row is not stored",
    "gateway.files.stored": "its row is stored, its client does not know",
    "gateway.files.adopted": "what a batch wrote has its name as a file, its row is not stored",
    "gateway.files.deleting": "the row of a deleted file is gone, its bytes are not",
    # Batches.
    "gateway.batches.linked": "the input of a new batch has a name of the batch's own, the batch is not stored",
    "gateway.batches.stored": "a batch is stored, its client does not know",
    "gateway.batches.validating": "a process reads the input of a batch",
    "gateway.batches.validated": "it is known whether the lines of a batch are sound, and nothing of that is stored",
    "gateway.batches.indexed": "where the lines are is stored, that the batch is in progress is not",
    "gateway.batches.lines_read": "lines of a batch are read from its input, they are no requests yet",
    "gateway.batches.line_ended": "a line has ended, its result is not stored",
    "gateway.batches.line_stored": "its result is stored, its batch does not know",
    "gateway.batches.cancelling": "that a batch is cancelled is stored, its client does not know",
    "gateway.batches.expiring": "the window of a batch is over, and nothing of that is stored",
    "gateway.batches.writing": "some lines of a batch's output and errors are written",
    "gateway.batches.file_kept": "the output or the errors of a batch are a file, the batch is not over",
    "gateway.batches.written": "both are files, that the batch is over is not stored",
    "gateway.batches.closed": "that is stored, its lines are still in the store",
    # Webhooks.
    "gateway.webhooks.told": "what a webhook is to be told is stored, nothing of it is sent",
    "gateway.webhooks.sent": "the webhook has taken it, it is still in the store",
    # A request's life in the gateway.
    "gateway.driver.restored": "a started gateway has taken up what its store holds; it does not listen yet",
    "gateway.driver.request_stored": "a request is stored, and neither in the ledger nor acknowledged",
    "gateway.driver.granted": "an attempt is granted, its payload not sent",
    "gateway.driver.output_counted": "output is counted by the ledger, and not passed to its client",
    "gateway.driver.end_recorded": "a request has ended in the ledger, its record is not stored",
    "gateway.driver.end_stored": "the record is stored, its client does not know",
    "gateway.driver.draining": "nothing new is taken, open streams are waited for",
    # The gateway's links.
    "gateway.work.hello_came": "an agent's hello is read, the ledger does not know of it",
    "gateway.solver_link.announcing": "the first part of what is open is announced to the solver",
    # The agent's link to a gateway.
    "agents.gateway_link.hello_sent": "the hello is sent, the gateway counts as away",
    "agents.gateway_link.after_pull": "a pull is sent, its answer has not come",
    "agents.gateway_link.payload_came": "a payload is here, the executor does not know",
    "agents.gateway_link.end_sent": "the end of an attempt is sent; whether it arrived nobody knows",
    # The agent's engine.
    "agents.driver.submitting": "a job is noted, the engine has not got it",
    "agents.driver.output_came": "output has come from the engine and is not sent",
    "agents.driver.engine_done": "the engine is done with a job, its end is not sent",
    "agents.driver.swapping": "a model swap is decided, the engine has not begun it",
    "agents.daemon.draining": "nothing new is pulled, what runs may finish",
    # The agent's link to the solver.
    "agents.solver_link.joined": "the hello is sent, the first window has not come",
    "agents.solver_link.window_came": "a window or an order is read, the executor does not know",
    # The solver.
    "solver.sessions.gateway_announcing": "the first part of a gateway's announcement is taken in",
    "solver.sessions.agent_joining": "an agent's hello is read, the manager does not know",
    "solver.sessions.window_leaving": "the manager has given an order to an agent, it is not sent",
    "solver.driver.plan_found": "the planner has answered, the plan is not adopted",
    # The supervisor.
    "qlm.supervisor.restarting": "a child has died, it is not started again",
}
