"""Which files is a release made of? What the server writes, a device reads under the same names."""

WEIGHTS = "model.safetensors"
MODEL = "model.onnx"
ANSWERS = "known-answers.json"
STATEMENT = "statement.dsse.json"
CARD = "model-card.md"
RELEASE = "release.json"
