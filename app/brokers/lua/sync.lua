-- Judge a position and read the page after it.
-- KEYS 1 meta, 2 log
-- ARGV 1 Pub/Sub channel, 2 meta ttl ms, 3 epoch of the position ('': only where the channel stands), 4 its offset,
--      5 entries at most, 6 bytes of envelopes at most, 7 nonce
-- Returns {verdict new|ok|diverged|expired, epoch, top, tail, lineage, cleared or '', {id, envelope, ...}}

local server, refusal = reign()
if not server then return refusal end
local state = settle(KEYS[1], KEYS[2], server, ARGV[7], ARGV[1])
keep(KEYS[1], KEYS[2], state, ARGV[2])
if ARGV[3] == '' then return answer('new', state) end
local offset = tonumber(ARGV[4])
local verdict = judge(KEYS[2], state, ARGV[3], offset)
if verdict ~= 'ok' then return answer(verdict, state) end
return answer('ok', state, pages(KEYS[2], offset + 1, state.top, 1, tonumber(ARGV[5]), tonumber(ARGV[6])))
