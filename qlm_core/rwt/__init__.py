"""The request waiting time (RWT) estimator: how long until a waiting request's first token.

The paper (§6) charges the q-th request the sum of the output tokens ahead of it over the token throughput,
(2) W_q = sum O_i / Θ, with the sum Normal by the central limit theorem (3). Three things are learned online here
instead of fixed offline: output lengths per model and SLO class (`lengths`), the engine's real speed against its profile
(`rates`), and how far realised waits fall from estimated ones (`calibration`), which turns a mean and a spread (`waits`)
into quantiles that hold as often as they claim. What is ahead of a request in its queue is the caller's part: the
Manager's timeline knows it.
"""
