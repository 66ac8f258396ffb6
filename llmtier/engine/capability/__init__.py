"""What vLLM can run on this machine, what is unwise in its arguments, and why it died; all pure."""

from llmtier.engine.capability.arguments import Finding, lint_engine_args
from llmtier.engine.capability.exits import explain_exit
from llmtier.engine.capability.schemes import Capability, assess

__all__ = ["Capability", "Finding", "assess", "explain_exit", "lint_engine_args"]
