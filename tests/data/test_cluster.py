"""Converting over a Dask cluster: the same bytes as on one machine, and errors that say what to do."""

import pytest
from numbered_source import NumberedSource, NumberedSourceConfig

from dydiff_dist.data.convert import convert

SOURCE = NumberedSource(NumberedSourceConfig(counts=(3, 2, 4)))


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'dydiff_dist[cluster]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as running:
        yield running.scheduler_address


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_and_goes_on_where_it_stopped(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(SOURCE, tmp_path / "alone")
    for _ in range(2):
        report = convert(SOURCE, tmp_path.joinpath("cluster").relative_to(tmp_path), cluster=cluster)
        assert files(tmp_path / "cluster") == files(tmp_path / "alone")
        (tmp_path / "cluster" / "train" / "train-000001.tar").unlink(missing_ok=True)
    assert (report.num_written, report.num_reused) == (1, 2)


@pytest.mark.slow
def test_no_scheduler_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs Dask: pip install 'dydiff_dist[cluster]'")
    monkeypatch.setattr("dydiff_dist.data.workers.CONNECT_TIMEOUT_SEC", 1)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at --cluster tcp://127.0.0.1:9") as caught:
        convert(SOURCE, tmp_path, cluster="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
