-- Forget the log: a new epoch begins at the next offset, and nothing before it is history any more. Keys stay.
-- KEYS 1 meta, 2 log
-- ARGV 1 Pub/Sub channel, 2 meta ttl ms, 3 nonce
-- Returns the position "<epoch>-<top>" from which the channel goes on

local server, refusal = reign()
if not server then return refusal end
local state = settle(KEYS[1], KEYS[2], server, ARGV[3], ARGV[1])
if not state.fresh then state.epoch = mint(server, ARGV[3], ARGV[1]) end
state.lineage = state.epoch .. ':' .. digits(state.top + 1)
state.tail, state.cleared = state.epoch, state.epoch
redis.call('DEL', KEYS[2])
store(KEYS[1], state)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local position = state.epoch .. '-' .. digits(state.top)
redis.call('PUBLISH', ARGV[1], position .. ' c')
return position
