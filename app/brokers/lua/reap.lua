-- Remove clients of a dead incarnation from a room, one part of the room a call, so that a large one blocks nobody.
-- KEYS 1 members, 2 users
-- ARGV 1 Pub/Sub channel, 2 incarnation, 3 cursor ("0" at first), 4 clients looked at (about)
-- Returns {next cursor ("0": all seen), clients removed}

local server, refusal = reign()
if not server then return refusal end
local scan = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
local roll, seen, removed = open_roll(KEYS[2]), {}, 0
for at = 1, #scan[2], 2 do
  local client = scan[2][at]
  local owner, member = read_client(scan[2][at + 1])
  if owner == ARGV[2] and not seen[client] then -- HSCAN may say one twice
    seen[client] = true
    redis.call('HDEL', KEYS[1], client)
    change(roll, member, -1)
    removed = removed + 1
  end
end
if removed > 0 then close_roll(roll, ARGV[1], '{"reaped":true}') end
return {scan[1], removed}
