-- The parallel scaling law (arXiv 2505.10475): the loss of N parameters outside the embedding that
-- run as P streams is E + (A / (N (k ln P + 1)))^alpha. P streams are thus worth k ln P + 1 times
-- the parameters. codegen/fit_law.py fits it to losses; the published ones are
-- model_specs/losses.csv.

local failure = require("codegen.fail")
local files = require("codegen.files")

local fail = failure.fail
local M = {}

-- The published constants.
M.corpora = {
    python = { name = "Stack-V2 Python", E = 0.6912, A = 1.131e7, k = 0.3935, alpha = 0.1894 },
    pile = { name = "the Pile", E = 1.2888, A = 1.974e8, k = 0.3345, alpha = 0.1963 },
}

local MAX_FILE_BYTES = 1 << 20

-- The parameters that one stream needs for the loss of N parameters with P streams.
function M.worth(corpus, N, P)
    return N * (corpus.k * math.log(P) + 1)
end

function M.loss(corpus, N, P)
    return corpus.E + (corpus.A / M.worth(corpus, N, P)) ^ corpus.alpha
end

-- A CSV file of the columns corpus, size, P, N, loss -> corpus -> list of { size, P, N, loss }.
function M.read(path)
    local lines = files.read(path, MAX_FILE_BYTES):gmatch("[^\r\n]+")
    local head = lines()
    if head ~= "corpus,size,P,N,loss" then
        fail("%s: first line: found %s, expected corpus,size,P,N,loss", path, failure.quote(head))
    end
    local all = {}
    for line in lines do
        local corpus, size, P, N, loss = line:match("^([^,]+),([^,]+),(%d+),(%d+),([%d.]+)$")
        if not corpus then
            fail("%s: found %s, expected corpus,size,P,N,loss", path, failure.quote(line))
        end
        all[corpus] = all[corpus] or {}
        table.insert(all[corpus], { size = size, P = tonumber(P), N = tonumber(N),
                                    loss = tonumber(loss) })
    end
    return all
end

return M
