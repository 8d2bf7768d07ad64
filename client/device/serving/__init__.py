"""Answer in real time: the verified model behind the Open Inference Protocol, on this machine."""
