"""Write ``llmtier/quantize/awq_architectures.json``: the layer mappings that the AWQ of llm-compressor has.

Run by the interpreter of the ``quantize`` environment (``llmtier env list`` names its folder), again whenever its
lock changes:

    <quantize environment>/bin/python scripts/write_awq_architectures.py [--autoawq SDIST_FOLDER]

Reads llm-compressor's registries and, where a folder of AutoAWQ's sources is given, the model types that it takes;
without it those of the file stay. ``plan`` reads the result: it must know them without loading torch.
"""

import argparse
import ast
import importlib.metadata
import json
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "llmtier" / "quantize" / "awq_architectures.json"
AUTOAWQ_MAP = "AWQ_CAUSAL_LM_MODEL_MAP"


def main() -> int:
    """Write the file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoawq", type=Path, help="folder of AutoAWQ's unpacked source distribution")
    options = parser.parse_args()
    kept = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    types = read_model_types(options.autoawq) if options.autoawq else kept.get("autoawq_model_types", [])
    document = {
        "made_by": "scripts/write_awq_architectures.py",
        "llmcompressor": importlib.metadata.version("llmcompressor"),
        **read_registries(),
        "autoawq_model_types": types,
    }
    TARGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def read_registries() -> dict[str, object]:
    """Return each set of mappings once, and by architecture which one it takes."""
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY

    sets: list[list[dict[str, object]]] = []
    architectures: dict[str, int | str] = dict.fromkeys(AWQ_DYNAMIC_MAPPING_REGISTRY, "dynamic")
    for name, mappings in AWQ_MAPPING_REGISTRY.items():
        rules = [{"smooth": rule.smooth_layer, "balance": list(rule.balance_layers)} for rule in mappings]
        if rules not in sets:
            sets.append(rules)
        architectures.setdefault(name, sets.index(rules))
    return {
        "mappings": sets,
        "architectures": dict(sorted(architectures.items())),
        "smoothquant_architectures": sorted(MAPPINGS_REGISTRY),
    }


def read_model_types(folder: Path) -> list[str]:
    """Return the model types of AutoAWQ's table, read from its source: importing it needs old libraries."""
    tree = ast.parse((folder / "awq" / "models" / "auto.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and AUTOAWQ_MAP in ast.unparse(node.targets[0])
        ):
            return sorted(
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
    raise SystemExit(f"{folder}: no {AUTOAWQ_MAP} in awq/models/auto.py")


if __name__ == "__main__":
    sys.exit(main())
