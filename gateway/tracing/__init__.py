"""Traces of requests for OpenTelemetry: off until `gateway.tracing.endpoint` says where they go."""
