"""Settings and trials of tiny studies, with every entry that a score depends on."""

from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.trial import Trial

PEFT = {"lora": 4, "vera": 8, "tinylora": 13, "unilora": None}  # method: size


def text_settings(model_folder, data, **changes):
    given = {"task": "glue/sst2", "model": str(model_folder), "data": str(data), "dims": (20,)}
    given |= {"max_steps": 2, "batch_size": 8, "max_length": 16, "device": "cpu"}
    return complete(Settings(**(given | changes)))


def trial_of(method="said", d=20, seed=0, **changes):
    trial = {"task": "glue/sst2", "model_hash": "aa", "data_hash": "bb", "metric": "accuracy"}
    trial |= {"method": method, "d": d, "size": PEFT.get(method), "head": "outside", "seed": seed}
    trial |= {"learning_rate": 0.1, "lambda_lr": 0.02, "normalization": "global"}
    trial |= {"max_steps": 2, "batch_size": 8, "warmup": 0.0, "bf16": False, "device": "cpu"}
    return Trial(**trial | changes)
