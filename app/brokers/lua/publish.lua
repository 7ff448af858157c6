-- Append a message and tell the subscribers.
-- KEYS 1 meta, 2 log, 3 idempotency key (8 bytes of digest, then the id) or absent
-- ARGV 1 Pub/Sub channel, 2 entries to keep, 3 log ttl ms, 4 meta ttl ms, 5 opened envelope, 6 payload,
--      with KEYS 3: 7 digest of the body, 8 key ttl ms; last: nonce
-- Returns the id; {id, 1} for a known key. Error CONFLICT for a known key with another body.

local server, refusal = reign()
if not server then return refusal end
local state = settle(KEYS[1], KEYS[2], server, ARGV[#ARGV], ARGV[1])
if KEYS[3] then
  local known = redis.call('GET', KEYS[3])
  if known then
    if string.sub(known, 1, 8) ~= ARGV[7] then return redis.error_reply('CONFLICT the key came with another body') end
    return {string.sub(known, 9), 1}
  end
end
local time = redis.call('TIME')
local envelope = ARGV[5] .. '"t":' .. time[1] .. string.format('%03d', math.floor(time[2] / 1000)) .. '}\n' .. ARGV[6]
local offset = digits(state.top + 1)
local id = state.epoch .. '-' .. offset
if state.lost then orphan(KEYS[2]) end
-- The first write: no memory, no disk, a bad id stop here, and nothing has moved.
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], offset .. '-0', 'e', state.epoch, 'm', envelope)
if state.fresh or state.tail ~= state.epoch then
  state.top, state.tail = state.top + 1, state.epoch
  store(KEYS[1], state)
else
  redis.call('HSET', KEYS[1], 'top', offset)
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if KEYS[3] then redis.call('SET', KEYS[3], ARGV[7] .. id, 'PX', ARGV[8]) end
redis.call('PUBLISH', ARGV[1], id .. ' ' .. envelope)
return id
