"""MLflow: a server, or a local folder that `mlflow server --backend-store-uri sqlite:///outputs/mlflow/mlflow.db` shows."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlprune.files import write_text
from rlprune.trackers.base import flat, require_package

PARAMS = 100  # in one request, MLflow's bound


class MLflow:
    """One run there for each run here, also where it was killed and goes on.

    Args:
        experiment: that the run belongs to; made where it is not there.
        tracking_uri: of a server or a database; None: what `MLFLOW_TRACKING_URI` says, and without it a database in `store`.
        store: folder of that database and of the plots.
    """

    folder = "mlflow"

    def __init__(self, *, experiment: str, tracking_uri: str | None, store: str) -> None:
        if not experiment:
            raise ValueError(f"experiment={experiment}: must be a name")
        self.experiment, self.tracking_uri, self.store = experiment, tracking_uri, store
        require_package("mlflow", "mlflow")

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin the run with its settings as parameters, or take up the one whose id the folder keeps."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, kept = Metric, folder / "run_id.txt"
        uri, artifacts = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            store = Path(self.store).absolute()
            store.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{store / 'mlflow.db'}", (store / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        if kept.exists():
            self._id = kept.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(self.experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment, artifact_location=artifacts)
        self._id = self._client.create_run(number, run_name=folder.resolve().parent.name).info.run_id
        params = [Param(_name(key), str(value)) for key, value in flat(settings)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(self._id, params=params[start : start + PARAMS])
        write_text(kept, f"{self._id}\n")

    def log(self, series: str, number: int, values: Mapping[str, float]) -> None:
        """Metrics `series/name`."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[self._metric(_name(f"{series}/{name}"), value, now, number) for name, value in values.items()]
        )

    def finish(self, rows: Mapping[str, Mapping[str, float]], images: Sequence[Path]) -> None:
        """Metrics `table/network/column`, and the plots as artifacts."""
        for network, values in rows.items():
            self.log(f"table/{network}", 0, values)
        for path in images:
            self._client.log_artifact(self._id, str(path))

    def close(self, done: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, status="FINISHED" if done else "FAILED")


def _name(key: str) -> str:
    """A name that MLflow takes: letters, digits, and few signs."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("%", "percent"))
