-- One heartbeat of a worker: renews its lease, claims the lowest free slot of its node, and looks whose lease is over.
-- KEYS 1 zset of incarnations by last beat (ms), 2 zset of tombstones, 3 reign, 4 set of its rooms, 5 revision of the revocations
-- ARGV 1 lease key prefix (same hash slot as KEYS), 2 incarnation, 3 node, 4 lease TTL (ms), 5 slot held (-1: none yet),
--      6 slots that may be claimed (0..n-1), 7 metrics snapshot (JSON)
-- A lease is "<node>\n<slot>\n<snapshot>". Returns {slot, now (ms), slots of the other living workers of the node,
-- incarnations without a lease, 1 if this one was not known, revision of the revocations, this server's reign}, or DEAD
-- for one that was buried. Who is not known any more to `KEYS 1` has been reaped: nothing is forgotten there by time.

local server, refusal = reign()
if not server then return refusal end
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return 'DEAD' end
local now = clock()
local slot = tonumber(ARGV[5])
local taken, others, lapsed = {}, {}, {}
for _, incarnation in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if incarnation ~= ARGV[2] then
    local lease = redis.call('GET', ARGV[1] .. incarnation)
    if lease then
      local node, held = string.match(lease, '^([^\n]*)\n(%-?%d+)\n')
      if node == ARGV[3] then
        taken[tonumber(held)] = true
        others[#others + 1] = tonumber(held)
      end
    else
      lapsed[#lapsed + 1] = incarnation
    end
  end
end
if slot < 0 or taken[slot] then
  slot = -1
  for candidate = 0, tonumber(ARGV[6]) - 1 do
    if not taken[candidate] then slot = candidate break end
  end
end
redis.call('SET', ARGV[1] .. ARGV[2], ARGV[3] .. '\n' .. digits(slot) .. '\n' .. ARGV[7], 'PX', ARGV[4])
local new = redis.call('ZADD', KEYS[1], digits(now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', digits(now - DAY))
redis.call('PEXPIRE', KEYS[4], digits(DAY))
reigning_since(KEYS[3], server, now)
return {slot, digits(now), others, lapsed, new, redis.call('GET', KEYS[5]) or '0', server}
