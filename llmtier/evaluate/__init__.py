"""Ask tiers, score their answers, collect outcomes; used by profile, replay and the gate."""
