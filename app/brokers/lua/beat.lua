-- One heartbeat of a worker: renews its lease and claims the lowest free slot of its node.
-- KEYS[1] zset of incarnations by last beat (ms)   KEYS[2] zset of tombstones
-- ARGV[1] lease key prefix (same hash slot as KEYS)  ARGV[2] incarnation  ARGV[3] node  ARGV[4] lease TTL (ms)
-- ARGV[5] slot held (-1: none yet)  ARGV[6] slots that may be claimed (0..n-1)  ARGV[7] metrics snapshot (JSON)
-- A lease is "<node>\n<slot>\n<snapshot>". Returns {slot, now (ms), slots of
-- the other living workers of the node}, or an error DEAD for one that was buried.
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return redis.error_reply('DEAD this incarnation was buried') end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local slot = tonumber(ARGV[5])
local taken, others = {}, {}
for _, incarnation in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if incarnation ~= ARGV[2] then
    local lease = redis.call('GET', ARGV[1] .. incarnation)
    if lease then
      local node, held = string.match(lease, '^([^\n]*)\n(%-?%d+)\n')
      if node == ARGV[3] then
        taken[tonumber(held)] = true
        others[#others + 1] = tonumber(held)
      end
    end
  end
end
if slot < 0 or taken[slot] then
  slot = -1
  for candidate = 0, tonumber(ARGV[6]) - 1 do
    if not taken[candidate] then slot = candidate break end
  end
end
redis.call('SET', ARGV[1] .. ARGV[2], ARGV[3] .. '\n' .. string.format('%.0f', slot) .. '\n' .. ARGV[7], 'PX', ARGV[4])
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - 86400000))
return {slot, string.format('%.0f', now), others}
