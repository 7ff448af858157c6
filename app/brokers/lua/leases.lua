-- All living leases: {"<node>\n<slot>\n<snapshot>", ...}.
-- KEYS[1] zset of incarnations   ARGV[1] lease key prefix (same hash slot)
local leases = {}
for _, incarnation in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local lease = redis.call('GET', ARGV[1] .. incarnation)
  if lease then leases[#leases + 1] = lease end
end
return leases
