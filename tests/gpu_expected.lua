-- Prints what golden_harness reads of a golden folder:  lua5.4 tests/gpu_expected.lua DIR >FILE
local here = arg[0]:match("^(.*/)") or "./"
package.path = here .. "../?.lua;" .. here .. "?.lua;" .. package.path
io.write(require("golden").expected_bytes(arg[1]))
