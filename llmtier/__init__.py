"""llmtier: find, prove and serve the cheapest tier that still meets each request's need.

The data's way, one stage a folder; stages meet only in files:

    model + calibration/<domain>.jsonl --quantize--> checkpoint + manifest
    checkpoint --profile--> profiles/<hardware>/<tier>/*.parquet
    traffic log --replay--> outcomes
    outcomes + profiles --fit-thresholds--> policy.json
    policy + profiles + engines --serve--> answers, metrics, a new traffic log

Importing this package does nothing but define the version.
"""

__version__ = "0.1.0"
