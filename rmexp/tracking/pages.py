"""MLflow's pages: their addresses, and the view in which an experiment's runs are shown.

`python -m rmexp.tracking.pages URI` prints the addresses of a store's experiments.
"""

import json
import sys

from mlflow.tracking import MlflowClient

from rmexp.secrets import redact

HERE = "http://127.0.0.1:5000"  # where `mlflow ui` serves what is in a database
VIEW = "evaluations"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_KIND = "workflowType=machine_learning"  # it opens as for traces of agents otherwise
_HEADLINE = "metrics.`headline`"
# Only evaluations that were measured have the tag: reports and imports stay out.
_STATE = {
    "searchFilter": "tags.`rmexp.headline` LIKE '%' and status = 'FINISHED'",
    "orderByKey": _HEADLINE,
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": [
        "tags.`rmexp.model`",
        "tags.`rmexp.headline`",
        _HEADLINE,
        *(f"metrics.`headline/{part}`" for part in ("low", "high", "n")),
        "attributes.`Dataset`",
    ],
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
}
VIEW_STATE = json.dumps(_STATE)


def top(uri: str) -> str:
    """Return where the pages of a server are, or those of a database once `mlflow ui` runs."""
    return redact(uri).rstrip("/") if uri.startswith(("http:", "https:")) else HERE


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page."""
    return f"{top(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{_KIND}"


def models_page(uri: str, experiment_id: str) -> str:
    """Return the address of an experiment's models, a row a model and a column a number."""
    return f"{top(uri)}/#/experiments/{experiment_id}/models?{_KIND}"


def runs_page(uri: str, experiment_id: str) -> str:
    """Return the address of an experiment's evaluations, in the view that it carries."""
    return f"{top(uri)}/#/experiments/{experiment_id}/runs?{_KIND}&viewStateShareKey={VIEW}"


def command(uri: str) -> str | None:
    """Return what opens the pages of a database, None for a server, which is open."""
    if uri.startswith(("http:", "https:")):
        return None
    return f"mlflow ui --backend-store-uri {redact(uri)} --host 127.0.0.1"


def main() -> None:
    """Print the addresses of all experiments that have runs of ours."""
    (uri,) = sys.argv[1:]
    for experiment in MlflowClient(tracking_uri=uri).search_experiments():
        if VIEW_TAG in experiment.tags:
            print(f"{experiment.name}")
            print(f"  models       {models_page(uri, experiment.experiment_id)}")
            print(f"  evaluations  {runs_page(uri, experiment.experiment_id)}", flush=True)


if __name__ == "__main__":
    main()
