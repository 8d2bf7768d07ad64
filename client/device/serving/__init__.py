"""Answer in real time: the verified model behind the Open Inference Protocol, on this machine."""

# For GRPC_EXPERIMENTS, which gRPC's core reads when it is first imported: sockets are looked after
# by the thread that asks for events and not by the core's own, at a third less CPU time a call.
EXPERIMENTS = "-event_engine_listener"
