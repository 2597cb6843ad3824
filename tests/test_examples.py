"""The examples in docstrings do what they say, and what a user imports has one.

They run in a process of their own: some register a name, which is to be done once.
"""

import subprocess
import sys

PROGRAM = '''
import doctest, importlib, pkgutil, sys
import dydiff_dist, dydiff_kernels

MEANT_FOR_USERS = """
dydiff_dist.data.manifest.FrameSchema dydiff_dist.data.shard_set.ShardSet.open dydiff_dist.data.source.register_source
dydiff_dist.diffusion.config.build_process dydiff_dist.diffusion.grids.timestep_grid
dydiff_dist.diffusion.process.DiffusionProcess.add_noise dydiff_dist.diffusion.sampling
dydiff_dist.diffusion.samplers.register_sampler dydiff_dist.diffusion.table.register_prediction
dydiff_dist.diffusion.table.register_process dydiff_dist.evaluation.baselines.Persistence
dydiff_dist.evaluation.case.ForecastCase dydiff_dist.evaluation.evaluate.evaluate
dydiff_dist.evaluation.figures.forecast_figure dydiff_dist.evaluation.scores.crps
dydiff_dist.extensions.import_extensions dydiff_dist.forecasting.cases.CaseReader
dydiff_dist.forecasting.cases.forecast_case dydiff_dist.forecasting.exported.load_forecaster
dydiff_dist.models.denoiser.register_network dydiff_dist.models.transformer.VideoTransformerConfig
dydiff_kernels.frame_mix.frame_mix dydiff_kernels.noise.normal dydiff_kernels.registry.register_op
""".split()

def modules():
    for package in (dydiff_dist, dydiff_kernels):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith(("triton_kernel", "_cpu")):
                yield importlib.import_module(found.name)

finder, runner, seen = doctest.DocTestFinder(), doctest.DocTestRunner(), set()
for module in modules():
    for test in finder.find(module):
        if test.examples:
            seen.add(test.name)
            runner.run(test)
print(runner.summarize(verbose=False))
missing = [name for name in MEANT_FOR_USERS if name not in seen]
sys.exit(f"no example: {missing}" if missing else runner.failures)
'''


def test_examples_do_what_they_say(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
