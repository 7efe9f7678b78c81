-- For programs that measure: runs a shell command, which must work, and returns what it prints.

return function(command, ...)
    command = command:format(...)
    local pipe = assert(io.popen(command, "r"))
    local output = pipe:read("a")
    if not pipe:close() then
        io.stderr:write("failed: ", command, "\n")
        os.exit(1)
    end
    return output
end
