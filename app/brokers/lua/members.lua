-- One page of a room's members. It goes on inside what one step of HSCAN gave, by name, since a small hash comes whole.
-- KEYS 1 users
-- ARGV 1 members at most, 2 cursor of HSCAN, 3 (or absent) name of the last one given of what that cursor gives
-- Returns {next cursor ("0": the end, unless a name follows), name or '', number of members in the room,
--          {member, clients, info, ...}}; the page may be short before the end.

local STEP = 100  -- the same in each call: a cursor goes on in what the one before has seen
local STEPS = 64  -- bounds one call where a hash is nearly empty

local server, refusal = reign()
if not server then return refusal end

-- Lua compares strings by the server's locale, in which two names may be equal.
local function before(one, other)
  for at = 1, math.min(#one, #other) do
    local first, second = string.byte(one, at), string.byte(other, at)
    if first ~= second then return first < second end
  end
  return #one < #other
end

local limit, cursor, after = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local page, given, steps = {}, {}, 0
local count = redis.call('HLEN', KEYS[1])
repeat
  local from, names, stored = cursor, {}, {}
  local scan = redis.call('HSCAN', KEYS[1], from, 'COUNT', STEP)
  cursor, steps = scan[1], steps + 1
  for at = 1, #scan[2], 2 do
    local name = scan[2][at]
    if not given[name] and not stored[name] and (not after or before(after, name)) then
      names[#names + 1], stored[name] = name, scan[2][at + 1]
    end
  end
  table.sort(names, before)
  for _, name in ipairs(names) do
    if limit == 0 then return {from, after, count, page, 1} end
    local clients, info = read_user(stored[name])
    page[#page + 1], page[#page + 2], page[#page + 3] = name, clients, info
    given[name], after, limit = true, name, limit - 1
  end
  after = nil
until cursor == '0' or limit == 0 or steps == STEPS
return {cursor, '', count, page, 0}
