-- The few TAP functions that the Lua tests need. A test that dies prints no plan, which prove
-- counts as a failure.

local tap = { count = 0, failed = 0 }

-- One test: passes if condition holds; details go to stderr when it does not.
function tap.ok(condition, name, details)
    tap.count = tap.count + 1
    if not condition then
        tap.failed = tap.failed + 1
        io.stderr:write("# ", name, ": ", tostring(details or "failed"), "\n")
    end
    print(("%s %d - %s"):format(condition and "ok" or "not ok", tap.count, name))
end

function tap.is(found, expected, name)
    tap.ok(found == expected, name,
        ("found %s, expected %s"):format(tostring(found), tostring(expected)))
end

function tap.skip(name, reason)
    tap.count = tap.count + 1
    print(("ok %d - %s # SKIP %s"):format(tap.count, name, reason))
end

function tap.done()
    print("1.." .. tap.count)
    os.exit(tap.failed == 0, true)
end

-- The values of environment variables; without one of them there is nothing to test.
function tap.needs(...)
    local values = {}
    for i, name in ipairs({ ... }) do
        values[i] = os.getenv(name)
        if not values[i] then
            print(("1..0 # SKIP %s is not set: no engine to test"):format(name))
            os.exit(0)
        end
    end
    return table.unpack(values)
end

return tap
