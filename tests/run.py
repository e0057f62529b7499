#!/usr/bin/env python3
"""End-to-end tests: run.py BINARY [filter…]

Runs every test whose name contains one of the filters, two at a time, in
network namespaces of its own. Exit status 1 if any failed.
"""

import os
import sys

sys.dont_write_bytecode = True  # the source tree stays as it is

import harness
import test_budgets
import test_command_line
import test_files
import test_list
import test_detection
import test_evidence
import test_proof
import test_services
import test_blocking
import test_post
import test_protected
import test_firewall
import test_places
import test_sets
import test_init
import test_metrics
import test_http
import test_process
import test_readme
import test_service
import test_prometheus
import test_dist
import test_image

MODULES = [test_budgets, test_command_line, test_files, test_list, test_detection, test_evidence,
           test_services, test_proof, test_blocking, test_post, test_protected,
           test_firewall, test_places, test_sets, test_metrics, test_http, test_process,
           test_service, test_readme, test_prometheus, test_init, test_dist,
           test_image]

if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit("usage: run.py BINARY [filter…]")
    sys.exit(harness.main(os.path.abspath(sys.argv[1]), sys.argv[2:], MODULES))
