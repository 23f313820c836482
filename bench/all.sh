#!/bin/sh
# Measures scenarios on this machine, from the build of their engines to the report:
#
#     bench/all.sh FOLDER SCENARIO...
#
# FOLDER gets the results and report/; engines that are there already (in engines/) are used again.
# The weights are synthetic: noise of full size, for speed alone. SDRT_COMMIT names the commit
# where the sources lie outside a repository; BENCH_OPTIONS adds options to bench run.
set -eu
folder=$1
shift
python=${PYTHON:-python3}
mkdir -p "$folder" engines

engines=
for scenario in "$@"; do
    engine=engines/bench--$scenario
    if [ ! -d "$engine" ]; then
        command=$("$python" -m sdrt.bench.cli list | sed -n "s/^$scenario: build-engines //p")
        # shellcheck disable=SC2086
        "$python" -m sdrt.export.cli $command --weights synthetic --out "$engine"
    fi
    engines="$engines --engine $engine"
done

failed=0
# shellcheck disable=SC2086
"$python" -m sdrt.bench.cli run "$@" $engines --out "$folder" ${BENCH_OPTIONS:-} || failed=$?
"$python" -m sdrt.bench.cli report "$folder" --out "$folder/report"
exit "$failed"
