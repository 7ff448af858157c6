-- Judge one position in each of many channels, without entries: `sync` for a worker's idle channels.
-- KEYS meta and log of each channel in turn
-- ARGV 1 nonce, then for each channel: Pub/Sub channel, meta ttl ms, epoch of the position ('': none), its offset
-- Returns the answer of `sync` for each channel, in order

local server, refusal = reign()
if not server then return refusal end
local answers = {}
for index = 1, #KEYS / 2 do
  local meta, log, at = KEYS[index * 2 - 1], KEYS[index * 2], index * 4 - 2
  local state = settle(meta, log, server, ARGV[1], ARGV[at])
  keep(meta, log, state, ARGV[at + 1])
  local verdict = 'new'
  if ARGV[at + 2] ~= '' then verdict = judge(log, state, ARGV[at + 2], tonumber(ARGV[at + 3])) end
  answers[index] = answer(verdict, state)
end
return answers
